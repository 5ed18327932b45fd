"""The artifact on disk."""

from __future__ import annotations

from dsv3c.runtime.errors.base import ArtifactFault


class ArtifactMissing(ArtifactFault):
    message = "{path} is not an artifact: {reason}"
    hint = "pass the folder that `dsv3c compile` wrote; it holds manifest.json, plan.json and weights.safetensors"


class FileUnreadable(ArtifactFault):
    message = "cannot read {path}: {reason}"
    hint = "check that the file exists and that this user may read it"


class FileNotRegular(ArtifactFault):
    message = "{path} is {kind}, an artifact holds regular files and links to them"
    hint = "put the real file there, or compile again"


class PathEscapes(ArtifactFault):
    message = "manifest.json names the file {name!r}, which lies outside of the artifact folder"
    hint = "do not use this artifact: names are relative, with no `..` and no backslash; compile again"


class FileSizeWrong(ArtifactFault):
    message = "{path} has {actual} bytes, manifest.json says {expected}"
    hint = "the file was truncated or replaced; copy the artifact again or compile again"


class FileTooLarge(ArtifactFault):
    message = "{path} has {actual} bytes, more than the {limit} this format allows"
    hint = "the file is damaged or not what its name says; compile again"


class HashMismatch(ArtifactFault):
    message = "{path} has the sha256 {actual}, manifest.json says {expected}"
    hint = "the file changed after compilation; copy the artifact again or compile again"


class FilesDamaged(ArtifactFault):
    message = "{count} of the artifact's files do not match their sha256: {names}"
    hint = "copy the artifact again or compile again"


class MalformedJson(ArtifactFault):
    message = "{path} is not valid JSON: {reason}"
    hint = "the file was truncated or edited; copy the artifact again or compile again"


class ManifestInvalid(ArtifactFault):
    message = "manifest.json: {where}: {reason}"
    hint = "compile the model again with this version of dsv3c"


class PlanInvalid(ArtifactFault):
    message = "plan.json: {where}: {reason}"
    hint = "compile the model again with this version of dsv3c"


class FormatNewer(ArtifactFault):
    message = "{path} has format version {found}, this dsv3c reads up to {known}"
    hint = "update dsv3c to at least the version that compiled the artifact ({writer})"


class WeightsInvalid(ArtifactFault):
    message = "weights.safetensors: {where}: {reason}"
    hint = "the file is damaged; copy the artifact again or compile again"


class WeightsLost(ArtifactFault):
    message = "{path} could not be read while the model ran: it was made shorter, or its disk fails"
    hint = "load the model again once the file is whole; replace an artifact in use by renaming, never by writing to it"


class PlanNotOfKernels(ArtifactFault):
    message = "{path} is not the plan that the kernels of {library} were compiled for"
    hint = "one of the two was edited, or they come from different compilations; compile again"
