"""The base of all errors of dsv3c, and every mistake the runtime can report: one small class a mistake, a module for
what they are about. They are imported from here.

A class carries its message as a template and a hint that says what to do. The fields of the template are keyword
arguments of the constructor and stay readable as attributes. `code` is a stable name for machine-readable reports.
"""

from __future__ import annotations

from dsv3c.runtime.errors.artifact import *
from dsv3c.runtime.errors.base import *
from dsv3c.runtime.errors.machine import *
from dsv3c.runtime.errors.measuring import *
from dsv3c.runtime.errors.request import *
from dsv3c.runtime.errors.saved import *
from dsv3c.runtime.errors.text import *
