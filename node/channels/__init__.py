"""How a raised priority reaches people beside the result objects: one module a channel.

A channel turns an Announcement into its own language, hands it over once, and says what came of it. It
keeps nothing, retries nothing and writes nothing down: the table of alerts and node.announce do that.

To add one:

1. a settings class in node/settings/alerts.py, a subclass of Alert with its `type`, named in AnyAlert;
2. a module here with a class that has the methods of `contract.Channel`;
3. a line in `catalogue.CHANNELS`;
4. a section in docs/alerts.md and a test with a faithful peer.

Rows are made by node.store.alerts.tell, in the transaction that stores the result; each holds its whole
Announcement, so that a resend says the same under the same `identifier`. What a channel must know:

- The first alert of a study is usually PRELIMINARY: classes and priority, no volume. FINAL follows where
  the channel wants `follow_up`; `number` counts them, and `corrects` is set where something is taken back.
- Order by `reading_priority`, which is never lowered; show what was found from `findings`.
- The same announcement may be sent twice (the answer was lost): make that harmless by its identifier.
- Where a receiver answers later, by another way, `send` returns Receipt(acknowledged=False), and whoever
  hears the answer calls records.alerts.receipt_came.
"""
