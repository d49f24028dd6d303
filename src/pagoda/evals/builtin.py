"""Imports every file whose functions are rows of the table of evaluators."""

from pagoda.evals import overlap as overlap
from pagoda.evals import programs as programs
from pagoda.evals import rag as rag
