"""Where the survey starts: no defence, and the first defences."""
