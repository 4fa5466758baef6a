"""The analysing half of ichnode: everything that may import torch lives below here."""
