"""From energy to emissions: the grid's carbon intensity, embodied carbon, water."""
