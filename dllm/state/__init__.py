"""What a step is made of: canvas, passes, proposals, progress; nothing here knows a loop."""
