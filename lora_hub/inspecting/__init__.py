"""What adapters change and how they get on with each other, from their factors alone: as values, JSON and one page."""
