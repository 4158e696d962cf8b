"""Container engines, as their own commands and files tell of them."""
