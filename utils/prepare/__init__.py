"""Official archives turned into folders of images (PrepareData.py)."""
