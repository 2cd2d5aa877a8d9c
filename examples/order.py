"""An order: a person prices it, and it is sent once it is paid and packed; or called off; or given up after three days.

perdure run examples/order.py:order --input '{"item": "owl"}'
perdure approve RUN --set price=12 --set wrap=paper
perdure signal RUN paid 12 --id payment-1
perdure signal RUN packed
"""

from __future__ import annotations

from perdure import Context, Field, agent


@agent(memory_mib=256)
def order(ctx: Context, item: str) -> str:
    form = [Field("price", "number", label="For how much?"), Field("wrap", choices=["paper", "none"], required=False)]
    verdict = ctx.approval(f"Sell one {item}?", form=form, timeout="3d")
    if not verdict.approved:
        return "not for sale"
    later = ctx.later
    try:
        which, paid = ctx.any(later.wait_for("paid"), later.wait_for("called off"), timeout="3d")
    except TimeoutError:
        return "given up"
    if which == 1:
        return "called off"
    ctx.all(later.wait_for("packed"), later.sleep_until("2025-01-06T08:00:00+01:00"))  # not before that morning
    return f"{item} sent: {verdict.values['price']} asked, {paid} paid"
