"""The report of a run: one HTML file with everything in it, made from the run folder, and from the data where it is."""

from rskd.report.task import report as report
from rskd.report.task import write_report as write_report
