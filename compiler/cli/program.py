"""The commands of `dsv3c`, in the order in which one uses them."""

from __future__ import annotations

import click

from dsv3c.compiler.cli.compile import compile_command
from dsv3c.compiler.cli.doctor import doctor_command
from dsv3c.compiler.cli.eval import eval_command
from dsv3c.compiler.cli.inspect import inspect_command
from dsv3c.compiler.cli.package import package_command
from dsv3c.compiler.cli.plan import plan_command
from dsv3c.compiler.cli.targets import targets_command
from dsv3c.compiler.cli.tune import tune_command
from dsv3c.runtime import __version__
from dsv3c.runtime.cli import group
from dsv3c.runtime.cli.bench import bench_command
from dsv3c.runtime.cli.chat import chat_command
from dsv3c.runtime.cli.generate import generate_command
from dsv3c.runtime.cli.serve import serve_command
from dsv3c.runtime.cli.verify import verify_command


@click.group(cls=group.InOrder, context_settings=group.SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Compile models of the DeepSeek-V3 family for one device, and run them.

    \b
    You have a checkpoint (a folder from Hugging Face with config.json and *.safetensors):
      dsv3c plan CHECKPOINT --quant int4       will it fit?
      dsv3c compile CHECKPOINT -o OUT          make an artifact for this kind of machine
      dsv3c generate OUT -p "Once upon a time" run it; needs neither compiler nor PyTorch

    Exit codes: 0 done, 1 the input or the machine is at fault (one message says what), 2 wrong usage.
    DSV3C_DEBUG=1..4 shows passes and times, rewrites, the IR, and the generated source.
    """


for command in (
    compile_command,
    generate_command,
    chat_command,
    serve_command,
    bench_command,
    eval_command,
    tune_command,
    inspect_command,
    verify_command,
    package_command,
    plan_command,
    doctor_command,
    targets_command,
):
    root.add_command(command)
