"""Where files lie that every machine is to see: a volume that all of them mount, or a bucket."""
