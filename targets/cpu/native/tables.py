"""plan.c: the plan, the levels and the defaults of one artifact as C constants."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.runtime.artifact.plan import SHORT, Buffer, Call, Entry, Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor, read_header
from dsv3c.runtime.engine.generation_config import usable
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.targets.cpu.native.chat_pieces import ChatPieces

_ALIGNMENT = 64
_TOKENIZER = "native/tokenizer.bin"
_INPUTS = ("tokens", "positions", "sequence", "page_table", "rows", "control")
_PLACES = {"input": "IN_INPUTS", "arena": "IN_ARENA", "cache": "IN_CACHE", "weight": "IN_WEIGHTS"}
# DLPack's code and bits. bfloat16 goes as uint16, as the Python runtime hands it over.
_DTYPES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (1, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "uint16": (1, 16),
    "int8": (0, 8),
    "uint8": (1, 8),
}
_CHUNK = 1 << 22
_ENTRIES = ("decode", "prefill", "mtp", f"{SHORT}decode", f"{SHORT}prefill")


def plan_source(folder: Path, manifest: Mapping[str, Any], chat: ChatPieces) -> str:
    """The C file for the artifact in `folder`; `manifest` needs no table of files."""
    header, tensors = _tensors(folder / "weights.safetensors")
    content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    plan = parse_plan(content, tensors, manifest["model"]["vocab_size"])
    starts, input_bytes = _input_offsets(plan.buffers)
    starts |= {name: tensor.offset for name, tensor in tensors.items()}
    starts |= {cache.name: number for number, cache in enumerate(plan.caches)}
    entries = {name: plan.entries[name] for name in _ENTRIES if name in plan.entries}
    kernels = sorted({kernel for entry in entries.values() for kernel, _ in entry.calls})
    parts = [
        "// Written by `dsv3c compile`: the tables of one model. What they mean is in plan.h.",
        '#include "plan.h"',
        _buffers(plan.buffers, starts),
        _cache_bytes(plan.caches),
        _kernels(kernels),
        *(_steps(name, entry.calls) for name, entry in entries.items()),
        _levels(folder, manifest["target"]["levels"]),
        _end_tokens(folder, manifest["model"]),
        *_lists(_defaults(folder, manifest["model"])),
        _table(folder, plan, manifest["model"], entries, header, input_bytes, chat),
    ]
    return "\n\n".join(parts) + "\n"


def _buffers(buffers: Iterable[Buffer], starts: Mapping[str, int]) -> str:
    rows = (f"  {_buffer(buffer, starts)},  // {i} {_comment(buffer.name)}" for i, buffer in enumerate(buffers))
    return "static const plan_buffer buffers[] = {\n" + "\n".join(rows) + "\n};"


def _buffer(buffer: Buffer, starts: Mapping[str, int]) -> str:
    """starts: where inputs begin in their block and tensors in the file, and the numbers of caches, by name."""
    code, bits = _DTYPES[buffer.dtype]
    size = buffer.width if buffer.kind == "cache" else buffer.size
    at = buffer.offset
    if buffer.kind != "arena":
        at += starts[buffer.tensor or buffer.name]
    return f"{{{_PLACES[buffer.kind]}, {code}, {bits}, {size}, {at}}}"


def _cache_bytes(caches: Iterable[Buffer]) -> str:
    sizes = ", ".join(str(cache.slot_bytes) for cache in caches)
    return f"static const uint32_t cache_bytes[] = {{{sizes}}};"


def _kernels(kernels: Iterable[str]) -> str:
    numbers = ", ".join(f"K_{kernel}" for kernel in kernels)
    names = "\n".join(f"  {_string(kernel)}," for kernel in kernels)
    return f"enum {{ {numbers} }};\n\nstatic const char *const kernels[] = {{\n{names}\n}};"


def _steps(name: str, calls: Iterable[Call]) -> str:
    rows = [f"  K_{kernel}, {len(indices)}, {', '.join(map(str, indices))}," for kernel, indices in calls]
    return f"static const uint32_t {name}_steps[] = {{\n" + "\n".join(rows) + "\n};"


def _levels(folder: Path, levels: Iterable[Mapping[str, Any]]) -> str:
    lists, rows = [], []
    for i, level in enumerate(levels):
        flags = "".join(f"{_string(flag)}, " for flag in level["requires"])
        lists.append(f"static const char *const requires_{i}[] = {{{flags}0}};")
        prefill = level.get("prefill_min_tokens", 0)
        rows.append(f"  {{{_string(level['name'])}, requires_{i}, {prefill}, {file_row(folder, level['file'])}}},")
    return "\n".join([*lists, "", "static const plan_level levels[] = {", *rows, "};"])


def _end_tokens(folder: Path, model: Mapping[str, Any]) -> str:
    sources = (_generation_config(folder).get("eos_token_id"), model.get("eos_token_ids"))
    found = [token for value in sources for token in (value if isinstance(value, list) else [value])]
    tokens = list(dict.fromkeys(token for token in found if type(token) is int))
    return f"static const int32_t end_tokens[] = {{{', '.join(map(str, [*tokens, -1]))}}};"


def _table(
    folder: Path,
    plan: Plan,
    model: Mapping[str, Any],
    entries: Mapping[str, Entry],
    header: int,
    input_bytes: int,
    chat: ChatPieces,
) -> str:
    bounds, numbers = plan.bounds, plan.inputs
    fields = {
        "tokens": bounds.T,
        "rows": bounds.R,
        "sequences": bounds.S,
        "pages": bounds.P,
        "page_size": plan.page_size,
        "vocab_size": model["vocab_size"],
        "context": min(plan.context, model.get("max_position_embeddings", plan.context)),
        "cache_bytes": "cache_bytes",
        "cache_count": "sizeof cache_bytes / sizeof *cache_bytes",
        "arena_bytes": plan.arena_bytes,
        "input_bytes": input_bytes,
        "inputs": f"{{{', '.join(str(numbers[name]) for name in _INPUTS)}}}",
        "buffers": "buffers",
        "buffer_count": len(plan.buffers),
        "kernels": "kernels",
        "kernel_count": "sizeof kernels / sizeof *kernels",
        **{name: _entry(name, entry) for name, entry in entries.items()},
        **_mtp(plan),
        "levels": "levels",
        "level_count": "sizeof levels / sizeof *levels",
        "weights": file_row(folder, "weights.safetensors", header),
        "tokenizer": file_row(folder, _TOKENIZER) if (folder / _TOKENIZER).exists() else "{0}",
        "end_tokens": "end_tokens",
        "end_token_count": "sizeof end_tokens / sizeof *end_tokens - 1",
        "parameters": _parameters(_defaults(folder, model)),
        "chat": chat_constants(chat),
    }
    rows = "\n".join(f"  .{name} = {value}," for name, value in fields.items())
    return f"const plan_table dsv3c_plan = {{\n{rows}\n}};"


def _entry(name: str, entry: Entry) -> str:
    calls = entry.calls
    arguments = sum(len(indices) for _, indices in calls)
    words = f"sizeof {name}_steps / sizeof *{name}_steps"
    logits, hidden = (_output(entry, output) for output in ("logits", "hidden"))
    limits = f"{entry.min_tokens}, {entry.max_tokens}, {entry.max_context}"
    sizes = f"{len(calls)}, {arguments}, {logits}, {hidden}, {limits}"
    return f"{{{name}_steps, {words}, {sizes}}}"


def _output(entry: Entry, name: str) -> str:
    return str(entry.outputs[name].buffer) if name in entry.outputs else "PLAN_NONE"


def _mtp(plan: Plan) -> dict[str, Any]:
    """What the entry mtp reads beside the inputs of all."""
    if "mtp" not in plan.entries:
        return {}
    hidden = plan.entries["mtp"].inputs["hidden"]
    return {"hidden_input": hidden, "hidden_size": plan.buffers[hidden].size // plan.bounds.T}


def _defaults(folder: Path, model: Mapping[str, Any]) -> SamplingParams:
    """As the runtime has them; without text there is nothing to stop at."""
    config, _ = usable(_generation_config(folder), model["vocab_size"])
    params = SamplingParams.from_generation_config(config)
    return params if (folder / _TOKENIZER).exists() else params.updated({"stop": ()})


def _lists(params: SamplingParams) -> Iterable[str]:
    """The lists that `_parameters` refers to, as far as they have elements."""
    for i, word in enumerate(params.bad_words_ids):
        yield f"static const int32_t bad_word_{i}[] = {{{', '.join(map(str, word))}}};"
    words = [f"{{bad_word_{i}, {len(word)}}}" for i, word in enumerate(params.bad_words_ids)]
    stops = [f"{{{_string(text)}, {len(text.encode())}}}" for text in params.stop]
    for kind, name, rows in (
        ("dsv3c_ids", "bad_words", words),
        ("int32_t", "suppressed", [str(token) for token in params.suppress_tokens]),
        ("dsv3c_string", "stops", stops),
    ):
        if rows:
            yield f"static const {kind} {name}[] = {{{', '.join(rows)}}};"


_NUMBERS = (
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size", "min_length"),
    *("min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p"),
)


def _parameters(params: SamplingParams) -> str:
    """A dsv3c_parameters. Beams are not for one sequence."""
    sampling = [f".{name} = {getattr(params, name)!r}" for name in _NUMBERS]
    sampling.append(".eos_token_id = {end_tokens, sizeof end_tokens / sizeof *end_tokens - 1}")
    if params.bad_words_ids:
        sampling.append(f".bad_words_ids = bad_words, .bad_words_count = {len(params.bad_words_ids)}")
    if params.suppress_tokens:
        sampling.append(f".suppress_tokens = {{suppressed, {len(params.suppress_tokens)}}}")
    fields = [f".sampling = {{{', '.join(sampling)}}}"]
    if params.stop:
        fields.append(f".stop = stops, .stop_count = {len(params.stop)}")
    fields += [f".max_new_tokens = {params.max_new_tokens or 0}", f".max_time = {params.max_time or 0.0!r}"]
    return "{" + ", ".join(fields) + "}"


def chat_constants(chat: ChatPieces) -> str:
    """A plan_chat."""
    values = ((name, value) for name, value in vars(chat).items() if value is not None)
    return "{" + ", ".join(f".{name} = {_string(value)}" for name, value in values) + "}"


def file_row(folder: Path, name: str, checked: int | None = None) -> str:
    """A plan_file: the CRC is of the first `checked` bytes, None of all."""
    size = (folder / name).stat().st_size
    checked = size if checked is None else checked
    crc, left = 0, checked
    with (folder / name).open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return f"{{{_string(name)}, {size}, {checked}, {crc:#x}}}"


def _tensors(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Bytes up to the data of a safetensors file, and its tensors by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, read_header(file.fileno())


def _input_offsets(buffers: Iterable[Buffer]) -> tuple[dict[str, int], int]:
    """Where each input begins in their common block, and its size."""
    offsets, end = {}, 0
    for buffer in buffers:
        if buffer.kind == "input":
            offsets[buffer.name] = end
            end += buffer.bytes + -buffer.bytes % _ALIGNMENT
    return offsets, end


def _generation_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "generation_config.json"
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _string(text: str) -> str:
    """A C string literal. Octal escapes end by themselves, hexadecimal ones would take in what follows."""
    plain = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{plain}"'


def _comment(text: str) -> str:
    return "".join(c if " " <= c <= "~" and c != "\\" else "." for c in text)
