"""What a finished run is worth: evaluation of its model on tasks that it was not trained for (``fedhpc evaluate``)."""
