"""The console in the browser: reading worklist, studies, queue, audit trail, and the JSON of the same."""
