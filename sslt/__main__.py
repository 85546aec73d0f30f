"""`python -m sslt` is `sslt`."""

from sslt.cli import main

raise SystemExit(main())
