"""Data sets, a file each: `dfew.py` is what `--dataset=dfew` reads. `data/source.py` says what such a file holds."""
