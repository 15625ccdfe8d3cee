"""Message queues: one protocol; in a SQLite file, on Amazon SQS, or in memory."""

from async_task_manager.queues._url import open_queue
from async_task_manager.queues.base import DeadLetter, Depth, Message, MessageQueue

__all__ = ["DeadLetter", "Depth", "Message", "MessageQueue", "open_queue"]
