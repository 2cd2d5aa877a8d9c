"""An agent with tools: a model asks the customer, looks up prices, and orders; each order is placed once.

perdure run examples/tools.py:shop --input '{"wish": "two owls, not too dear"}'
perdure approve RUN --comment "white ones, please"
"""

from __future__ import annotations

from typing import Any

from perdure import Context, agent

SYSTEM = "You run a shop's orders. Use your tools, and say in the end what you ordered."
PRICES = {"owls": 12.0, "cats": 8.0}


@agent(memory_mib=256)
def shop(ctx: Context, wish: str) -> str:
    def ask(question: str) -> str:  # a plain function: what it asks of ctx is recorded
        """Ask the customer, who may take days to answer."""
        verdict = ctx.approval(question, timeout="3d")
        return verdict.comment or ("yes" if verdict.approved else "no")

    tools = [ask, ctx.tool(price, effect="read-only"), ctx.tool(order, effect="once")]
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": wish}]
    while (turn := ctx.chat(messages, tools=tools, max_tokens=200)).tool_calls:
        messages += [turn.message, *map(ctx.use, turn.tool_calls)]
    return turn.text


def price(item: str) -> float:
    """What one of an item costs. Items: owls, cats."""
    return PRICES[item]


def order(item: str, count: int) -> str:
    """Order so many of an item."""
    with open("orders.txt", "a") as file:  # as it would be at the shop that is asked
        file.write(f"{count} {item}\n")
    return f"{count} {item} ordered"
