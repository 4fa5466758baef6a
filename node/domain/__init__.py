"""What the node is about, in pure Python: no file, no network, no database, no clock."""
