"""tokgolf.eval.audit: the byte accounting of other people's tokenizers, shards and claims.

    findings    names, severities, the verdict          stress       documents that break things
    subject     a tokenizer as an audit sees it         lossless     what comes back of a text
    accounting  counted against true bytes, reasons     tables       somebody's arrays (.npz)
    shards      val against train, byte counts          tokenmonster its vocabularies (.yaml)
    claims      val_loss and val_bpb against the text   audit        all of it, for `tokgolf audit`

What cannot be seen from files is not here: whether probabilities sum to one, or a model looked at
the target. Score the artifact for that.
"""
