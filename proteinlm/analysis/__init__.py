"""Analysis: with the same weights, how far an approximate attention is from the exact one."""

from proteinlm.analysis.comparison import compare_checkpoint
from proteinlm.analysis.report import write_report
from proteinlm.analysis.results import ComparisonConfig, ComparisonReport
from proteinlm.analysis.schema import read_report

__all__ = ["ComparisonConfig", "ComparisonReport", "compare_checkpoint", "read_report", "write_report"]
