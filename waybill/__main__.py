"""`python -m waybill` = `waybill`."""

from waybill.cli import main

main()
