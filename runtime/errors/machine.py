"""The machine, its devices and their drivers."""

from __future__ import annotations

from dsv3c.runtime.errors.base import RuntimeFault


class WrongMachine(RuntimeFault):
    message = "the artifact is compiled for {wanted}, this machine is {found}"
    hint = "compile for this machine: dsv3c compile --target {suggestion}"


class UnknownIsaLevel(RuntimeFault):
    message = "DSV3C_ISA names the kernel level {level!r}, the artifact has {known}"
    hint = "set DSV3C_ISA to one of these, or unset it to let the runtime choose"


class UnknownCapability(RuntimeFault):
    message = "DSV3C_WITHOUT names {name!r}; what kernels of the artifact ask of a device: {known}"
    hint = "set DSV3C_WITHOUT to some of these, joined by commas, or unset it"


class IsaNotSupported(RuntimeFault):
    message = "kernel level {level} needs the CPU features {missing}, which this CPU lacks; the artifact has {known}"
    hint = (
        "unset DSV3C_ISA and DSV3C_WITHOUT where they are set, or compile without --levels; x86 CPUs need AVX2, FMA "
        "and F16C at least, older ones cannot run any artifact"
    )


class LibraryInvalid(RuntimeFault):
    message = "{path} cannot be loaded as a kernel library: {reason}"
    hint = "compile the model again on or for this system"


class KernelMissing(RuntimeFault):
    message = "{path} does not export {name!r}, which plan.json calls"
    hint = "plan and kernels come from different compilations; compile again"


class KernelFailed(RuntimeFault):
    message = "{path} calls the kernel {name} with what it does not take: {reason}"
    hint = "the plan was edited, or is not of these kernels; compile again"


class Forked(RuntimeFault):
    message = "the model was loaded before this process was forked, and {device} cannot be used on both sides"
    hint = "load the model after the fork, or start processes by spawn (multiprocessing.set_start_method)"


class NoDevice(RuntimeFault):
    message = "no device module runs the target {target!r}; known: {known}"
    hint = "update dsv3c, or compile for one of the known targets"


class OnnxRuntimeMissing(RuntimeFault):
    message = "the package onnxruntime cannot be imported: {reason}"
    hint = "pip install onnxruntime, or onnxruntime-gpu for the CUDA provider"


class ProviderMissing(RuntimeFault):
    message = "this build of ONNX Runtime ({version}) has no provider {provider}; it has {known}"
    hint = "pip install onnxruntime-gpu for cuda, onnxruntime-webgpu for webgpu, or compile with --target onnx"


class GraphInvalid(RuntimeFault):
    message = "ONNX Runtime refuses {path}: {reason}"
    hint = "manifest.json names the version it was checked with (target.onnxruntime); update, or compile again"


class GraphFailed(RuntimeFault):
    message = "ONNX Runtime failed to run the graph of {entry}: {reason}"
    hint = "run `dsv3c verify`, and compile the model again if it finds nothing"


class NoCallTimes(RuntimeFault):
    message = "{what} has no kernel calls of ours that could be timed one by one"
    hint = "{instead}"


class BadPlacement(RuntimeFault):
    message = "the layers cannot be shared out: {reason}"
    hint = "{instead}"


class CannotSplit(RuntimeFault):
    message = "{path} cannot run a part of the layers: {reason}"
    hint = "compile both artifacts from the same checkpoint, with the same --max-tokens and --max-sequences"


class DeviceApiMissing(RuntimeFault):
    message = "{api} cannot be used: {reason}"
    hint = "{get}"


class NoDeviceFound(RuntimeFault):
    message = "{api} finds no device: {reason}"
    hint = "{get}"


class UnknownDevice(RuntimeFault):
    message = "no {api} device is {name!r}; there are {known}"
    hint = "--device takes a number, a part of one name, or a type; `dsv3c doctor` lists the devices"


class DeviceNotChosen(RuntimeFault):
    message = "--device is {name!r}, but artifacts for {target} leave no choice of a device"
    hint = "leave it out"


class ThreadsNotChosen(RuntimeFault):
    message = "--threads is {threads}, but artifacts for {target} run on a GPU as a whole"
    hint = "leave it out; with --gpu-layers it counts for the layers on the CPU"


class DeviceLacks(RuntimeFault):
    message = "{device} cannot run this artifact: {lacks}"
    hint = "{hint_text}"


class DeviceMemoryShort(RuntimeFault):
    message = "{device} has {available} bytes of memory, {needed} are needed: {parts}"
    hint = "lower context or max_batch when loading, take another --device, or compile with fewer bits (--quant)"


class DeviceMemoryRefused(RuntimeFault):
    message = "{device} refused {bytes} bytes for {what}"
    hint = "close other programs that use the device, lower context or max_batch, or take another --device"


class DriverFailed(RuntimeFault):
    message = "the driver of {device} refused {what}: {reason}"
    hint = "update the driver, or compile the model again; if it happens again, this is a mistake in dsv3c"


class DeviceLost(RuntimeFault):
    message = "{device} was lost while it ran {what}"
    hint = "load the model again; if it happens again, look into the system's log for the driver's reason"


class ModuleInvalid(RuntimeFault):
    message = "{path} is no SPIR-V module: {reason}"
    hint = "compile the model again"


class MemoryRefused(RuntimeFault):
    message = "the system refused {bytes} bytes for {what}"
    hint = "lower context or max_batch when loading, or free memory"


class ThreadsInvalid(RuntimeFault):
    message = "threads is {value!r}, it must be an integer from 1 to {limit}"
    hint = "leave it out for one thread on each performance core that this process may use"
