"""Every mistake the compiler can report: one small class a mistake, as in dsv3c.runtime.errors.

Those that one room alone knows of stand in it: of checkpoints, hubs, adapters, targets.
"""

from __future__ import annotations

from dsv3c.runtime.errors import Dsv3cError as Dsv3cError  # the base of all

# --- IR and passes ----------------------------------------------------------------------------------------------------


class CompilerFault(Dsv3cError):
    """Base of what the compiler alone can be at fault for, not what it was given."""


def is_fault(error: Exception) -> bool:
    """Whether it is the compiler's own, neither of what it was given nor of the machine."""
    return isinstance(error, CompilerFault) or not isinstance(error, (Dsv3cError, MemoryError, OSError))


class IrSyntaxError(Dsv3cError):
    message = "not an IR graph: {reason}\n  in: {line}"
    reason: str
    line: str


class IrLineError(IrSyntaxError):
    """The same, in a text of many lines: `number` is the line's, from 1 on."""

    message = "not an IR graph: {reason}\n  in line {number}: {line}"
    number: int


class BadDumpError(Dsv3cError):
    message = "{path} is not the dump of a graph: {reason}"
    hint = "dsv3c compile CHECKPOINT --dump-to DIR writes dumps"


class TypeRuleError(CompilerFault):
    """An operation was applied to operands that its typing rule refuses."""

    message = "{op}({operands}): {reason}"


class VerifyError(CompilerFault):
    message = "the graph is wrong {where}: {reason}\n{context}"
    hint = "this is a fault of the compiler; run again with DSV3C_DEBUG=3 and --dump-to to see each graph"
    where: str
    reason: str
    context: str


class WrongGraphError(Dsv3cError):
    message = "the graph of {path} is wrong: {reason}\n{context}"
    hint = "mend the text; --no-verify takes it as it is"


class NotEvaluableError(Dsv3cError):
    message = "the graph cannot be evaluated: {reason}"


class OutputsDifferError(Dsv3cError):
    message = "the graphs before and after differ by more than {tolerance:g} of the largest value in {names}"
    hint = "quantise, and pack for integer products, round: they need a larger --tolerance"


class UnknownOpError(Dsv3cError):
    message = "no operation is called {op!r}"


class UnknownPassError(Dsv3cError):
    message = "no pass is called {name!r}; the passes are {known}"


class BadPassError(Dsv3cError):
    message = "{text!r} is no pass: {reason}"


class UnknownFormError(Dsv3cError):
    message = "the target {target} has no form called {name!r}; its forms are {known}"


class NotAViewError(CompilerFault):
    message = "{value!r} cannot be read in place"
    hint = "this is a fault of the compiler: a pass left a reordering of activations where kernels need a view"


# --- Checkpoints, see compiler/checkpoint/errors.py -------------------------------------------------------------------


class CheckpointError(Dsv3cError):
    """Base of all faults of the files of a checkpoint."""


class TokenizerFormatError(CheckpointError):
    message = "{path} is not a tokenizer: {reason}"
    hint = "copy the file from where the checkpoint comes from again"


# --- Options, formats of weights --------------------------------------------------------------------------------------


class BadOptionError(Dsv3cError):
    message = "{option} is {value!r}; expected {expected}"


class FormatRefusedError(Dsv3cError):
    message = "the target {target} has no kernels for weights in {format}"
    hint = "it has {known}; {format} is there for {others}. A checkpoint in any format is decoded and rounded again"


class PlanError(Dsv3cError):
    """Base of all faults of a quant-plan.json."""

    hint = "dsv3c plan CHECKPOINT --quant auto --target-bpw 4.25 --write-plan FILE writes one that is right"


class PlanInvalidError(PlanError):
    message = "{path} is no plan of formats: {reason}"


class PlanNameError(PlanError):
    message = "{path} names {name}, which is no weight of this model"
    hint = "the nearest are {nearest}; a pattern such as layers.*.experts.* names several"


class PlanFormatError(PlanError):
    message = "{path} gives {name} the format {format}, which is none"
    hint = "use {known}"


class PlanFormatRefusedError(PlanError):
    message = "{path} gives {name} the format {format}, for which the target {target} has no kernels"
    hint = "it has {known}"


class BudgetError(Dsv3cError):
    message = "no choice of formats keeps {what} within {budget}: the least possible is {least}"
    hint = "raise {option}{otherwise}"


# --- What is written, programs that are started -----------------------------------------------------------------------


class OutputExistsError(Dsv3cError):
    message = "{path} exists already"
    hint = "choose another folder with -o, or pass --overwrite to replace it"


class InterruptedRunError(Dsv3cError):
    message = "an interrupted run into {path} was of other options: {differences}"
    hint = "compile as then to go on with it, choose another folder with -o, or pass --restart, which discards {folder}"


class OutputNameError(Dsv3cError):
    message = "{path} cannot be the path of an artifact: {reason}"
    hint = "choose another folder with -o; libraries that load artifacts do not open such names"


class UnwritableOutputError(Dsv3cError):
    message = "cannot write to {path}: {reason}"
    hint = "choose another place: a folder that this user may write to, and a name that its file system takes"


class NoRoomError(Dsv3cError):
    message = "cannot write {path}: {reason}"
    hint = "make room there, or raise the limit of file sizes (ulimit -f); TMPDIR names the disk of temporary files"


class ToolHangsError(Dsv3cError):
    message = "a program has not ended after {seconds} s: {command}"
    hint = "try that command by hand; CC names another C compiler"


class NotAnArtifactError(Dsv3cError):
    message = "{path} is not an artifact, and is not overwritten: {reason}"
    hint = "choose another folder with -o, or move away what is there"


class WrittenWrongError(CompilerFault):
    message = "what was written for {target} does not load: {reason}"
    hint = "this is a mistake in dsv3c, not in the checkpoint: please report it with this message; nothing was kept"


class ForeignFileError(Dsv3cError):
    message = "{path} is there already, is not {kind}, and is not overwritten"
    hint = "choose another place, or move it away"


# --- Tuning and comparing ---------------------------------------------------------------------------------------------


class NotTunableError(Dsv3cError):
    message = "{path} cannot be tuned: {reason}"
    hint = "tune its checkpoint instead: dsv3c tune CHECKPOINT"


class TunerMissingError(Dsv3cError):
    message = "the search needs the package optuna, which is not installed"
    hint = "pip install 'dsv3c[tune]'"


class NoLocalTargetError(Dsv3cError):
    message = "nothing can be compiled for this machine's CPU, to compare with: {reason}"
    hint = "compile elsewhere, and compare artifacts that this machine runs"


class SweepFileError(Dsv3cError):
    message = "{path} is no table of `dsv3c eval --sweep`: {reason}"
    hint = "name another file with -o; nothing is overwritten that is not such a table"


class SweepDiffersError(Dsv3cError):
    message = "{path} has figures of {what}"
    hint = "name another file with -o, or remove it"


# --- Calibration ------------------------------------------------------------------------------------------------------


class CalibrationError(Dsv3cError):
    """Base of all faults of a text for calibration."""


class EmptyCalibrationError(CalibrationError):
    message = "{path} is empty: there is nothing to calibrate on"
    hint = "give a text of the kind that the model is to read and write, some pages long"


class BinaryCalibrationError(CalibrationError):
    message = "{path} is no text: byte {at} is not UTF-8, or a zero"
    hint = 'give a text in UTF-8, or *.jsonl with {{"text": …}} or {{"messages": […]}} in each line'


class ShortCalibrationError(CalibrationError):
    message = "{path} has {found} tokens in sequences of at least two; calibration needs {least} or more"
    hint = "give a longer text; some ten thousand tokens are good for mixtures of experts"


class CalibrationLineError(CalibrationError):
    message = "{path}, line {number}: {reason}"
    hint = 'each line of *.jsonl is an object with a "text", or with "messages" for the chat template'


class StatisticsError(Dsv3cError):
    message = "what {tokens} tokens of calibration say of a matrix is not finite (its {matrix})"
    hint = "calibrate with another text, or choose --method rtn; if that fails too, the checkpoint's weights overflow"


class NoTokenizerError(CalibrationError):
    message = "{path} has no tokenizer.json, without which a text cannot be calibrated on"
    hint = "put one there, or compile with --method rtn or search, which take no text"
