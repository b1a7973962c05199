"""Is what comes in still what the model was trained on?"""
