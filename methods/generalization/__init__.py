"""Methods that are to hold against attacks they were not trained on."""
