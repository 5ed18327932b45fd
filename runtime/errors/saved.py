"""What is saved of the caches."""

from __future__ import annotations

from dsv3c.runtime.errors.base import RequestFault
from dsv3c.runtime.errors.request import ContextOverflow


class SaveRefused(RequestFault):
    message = "cannot save the {what} as {path}: {reason}"
    hint = "make room on the disk, or give another path; what was there before is unchanged"


class SavedInvalid(RequestFault):
    message = "{path} is no saved {what}: {reason}"
    hint = "give a file that a {what} was saved to, or a path where nothing is yet"


class SavedDamaged(RequestFault):
    message = "{path} is a damaged {what}: {reason}"
    hint = "it was cut off or changed after it was saved; copy it again, or delete it to begin anew"


class SavedNewer(RequestFault):
    message = "{path} has the {what} format {found}, this dsv3c reads up to {known}"
    hint = "update dsv3c to at least the version that saved it ({writer})"


class SavedElsewhere(RequestFault):
    message = "{path} was saved with another artifact than {artifact}: {made}"
    hint = (
        "run it with that artifact on the same devices, or give another path to begin anew; rows of a cache are of "
        "use only to the weights that computed them"
    )


class SavedTooLong(ContextOverflow):
    message = "{path} has {tokens} tokens, the context holds {context}"
    hint = "load with a larger context (the plan allows {largest}), or give another path to begin anew"
