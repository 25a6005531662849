"""Does an adapter fit its base, and will others load it: rules over names, shapes, dtypes and documents; no torch."""
