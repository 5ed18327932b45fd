"""What can be wrong with a repository on a hub, or on the way to it."""

from __future__ import annotations

from dsv3c.compiler.errors import CheckpointError


class HubError(CheckpointError):
    """Base of all faults of a repository on a hub."""


class HubPackageError(HubError):
    message = "{id} is no folder here, and to fetch it from {endpoint} takes the package huggingface-hub"
    hint = "pip install 'dsv3c[hub]', or give the folder of a checkpoint"


class HubUnreachableError(HubError):
    message = "{id} is no folder here, and {endpoint} cannot be asked for it: {reason}"
    hint = "give the folder of a downloaded checkpoint, or try again with a network; HF_ENDPOINT names another hub"


class HubAccessError(HubError):
    message = "{id} is neither a folder here nor a repository that {endpoint} shows to this user: {reason}"
    hint = "check the name; for a private or gated repository log in with `hf auth login`, or set HF_TOKEN"


class HubRevisionError(HubError):
    message = "{id} has no revision {revision}"
    hint = "give a branch, a tag or a commit: {id}@main"


class HubAnswerError(HubError):
    message = "what {endpoint} says of {id} cannot be: {reason}"
    hint = "try again; if it stays, the hub is at fault"


class HubFileError(HubError):
    message = "{url} cannot be taken: {reason}"
    hint = "nothing of it was kept; try again, or give the folder of a downloaded checkpoint"


class HubInterruptedError(HubError):
    message = "{url} broke off after {done} of {size} bytes: {reason}"
    hint = "the same command goes on from there"


class HubStoreError(HubError):
    message = "what is fetched cannot be kept in {path}: {reason}"
    hint = "free some room there, or name another folder: HF_HUB_CACHE for downloads, TMPDIR for headers"


class HubWeightsError(HubError):
    message = "{id} cannot be planned from afar: {reason}"
    hint = "download it and give its folder, or compile it by its id, which downloads it"


class HubGgufError(HubError):
    message = "{id} has GGUF files alone, such as {found}: by an id none of them is chosen"
    hint = "download one, with its other parts if it is split, and give its path: hf download {id} {found}"
