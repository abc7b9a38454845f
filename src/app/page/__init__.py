"""Reports as single HTML files without scripts and external files, for light and dark, wide and narrow screens."""
