"""`danlu verify`: the promises, measured on a user's own model and a few of their own samples.

A check is a function of a `Subject` (`checks.py` lists them); what it measures is held to a tolerance that follows from
the arithmetic (`tolerances.py`).
"""

from danlu.verifying.verdict import Checked, Verdict, Verification
from danlu.verifying.verify import verify

__all__ = ["Checked", "Verdict", "Verification", "verify"]
