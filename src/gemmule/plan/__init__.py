"""`gemmule plan`: what training and distilling would take here, before any of it is begun."""
