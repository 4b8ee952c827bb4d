"""Pure decisions and the data behind them: values in, values out. No I/O, clock or randomness (import-linter checks)."""
