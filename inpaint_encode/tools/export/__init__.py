"""An output in the files that others read: `formats` makes them of rows, `chunk` of a data file, `run` of all."""
