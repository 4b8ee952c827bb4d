"""Everything that runs jobs. Runs from a checkout or the image; never part of the wheel."""
