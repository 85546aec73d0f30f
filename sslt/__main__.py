"""`python -m sslt` is `sslt`, which does not import what lies in the working folder."""

import os
import sys

if sys.path[:1] == [os.getcwd()] and not getattr(sys.flags, "safe_path", False):  # `-m` has put it there (PYTHONPATH comes after it)
    here = sys.path.pop(0)
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == here:  # sslt itself lies in it: found last, it hides nothing
        sys.path.append(here)

from sslt.cli import main

raise SystemExit(main())
