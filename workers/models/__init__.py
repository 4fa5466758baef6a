"""The models: what each must answer (contract), which there are (catalogue), how one is loaded (runtime)."""
