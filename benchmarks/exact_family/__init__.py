"""Random exact models of many kinds (``laws``, ``models``), and their reference solutions (``task``)."""

from __future__ import annotations

from benchmarks.exact_family.laws import FACTORIAL as FACTORIAL
from benchmarks.exact_family.laws import KINDS as KINDS
from benchmarks.exact_family.models import ModelSet as ModelSet
from benchmarks.exact_family.models import model_set as model_set
from benchmarks.exact_family.task import CACHE as CACHE
from benchmarks.exact_family.task import STARTS as STARTS
from benchmarks.exact_family.task import Task as Task
from benchmarks.exact_family.task import flow as flow
from benchmarks.exact_family.task import task as task
