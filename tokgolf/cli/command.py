"""The class of all commands: an option of one value is given once."""

import click

CORPORA = ("--corpus", "--val", "--train-corpus")


class Command(click.Command):
    """Refuses a second value of an option, where click would take the last and say nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        order = self.make_parser(ctx).parse_args(args=[*args])[2]
        for option in self.params:
            if not isinstance(option, click.Option) or option.multiple or option.count:
                continue
            times = order.count(option)
            if times > 1 and not option.is_flag and not ctx.resilient_parsing:
                name = max(option.opts, key=len)
                hint = "give one folder or file of all documents" if name in CORPORA else "give one"
                raise click.UsageError(f"{name} is given {times} times and takes one value; {hint}")
        return super().parse_args(ctx, args)
