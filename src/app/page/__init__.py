"""Reports as one HTML file each: nothing is loaded, nothing runs, and it can be light or dark, wide or narrow."""
