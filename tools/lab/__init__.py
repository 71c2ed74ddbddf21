"""The laboratory: what measures the package and writes its documents."""
