"""Training: recipes with every choice in them, on Lightning's trainer."""
