"""Extensions that come with the SDK. Off unless a caller names them: ``Engine.load(…, extensions=["tracing"])``."""
