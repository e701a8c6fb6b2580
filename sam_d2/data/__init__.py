"""Datasets: read, check, register. Importing this package does not import torch."""

from sam_d2.data.dataset_file import DatasetFile, inspect_dataset_file, load_dataset_file
from sam_d2.data.findings import Finding, raise_findings
from sam_d2.data.register import cached_dataset_file, register_dataset
from sam_d2.data.resolve import ResolvedDataset, resolve_dataset
from sam_d2.data.split import Split

__all__ = [
    "DatasetFile",
    "Finding",
    "ResolvedDataset",
    "Split",
    "cached_dataset_file",
    "inspect_dataset_file",
    "load_dataset_file",
    "raise_findings",
    "register_dataset",
    "resolve_dataset",
]
