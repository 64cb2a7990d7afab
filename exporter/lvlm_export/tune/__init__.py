"""Search for the method, sites, split and ratio that suit a model, its questions and a device."""
