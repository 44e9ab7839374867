"""Images and labels: the procedural world, data sets, transforms, batches. Knows no models."""
