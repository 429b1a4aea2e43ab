"""Files that ship with the package.

`digits.npz` holds 5,000 handwritten digits, 500 of each class, `images` uint8 [5000, 28, 28] and
`labels` uint8 [5000] with the classes interleaved (0, 1, ..., 9, 0, 1, ...). They are the first 500
of each class among the 60,000 *training* images of the MNIST database, so the MNIST test images
stay unseen.

`moving_4step.safetensors` draws clips of such digits, which move.

`emoji.safetensors` draws emoji from their names, in the styles noto, twemoji and fluent; it was
trained on 5,107 pictures, which are not in the package. `emoji_1step.safetensors` holds what
differs in a student that draws them in one evaluation, `emoji_video_4step.safetensors` what differs
in one that draws clips of them in four, trained on 659 animations that are not in the package.

`selfcheck.npz` holds pictures of `digits.safetensors` that `ddim_jax/selfcheck.py` draws again.

`emoji_encoder.npz` holds the weights of a network that `ddim_jax/evaluation/emoji.py` trained on
pictures of emoji, and its features of them; the pictures are not in it.

MNIST: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
Emoji: Noto Emoji (Google, Apache 2.0), Twemoji (Twitter and contributors, CC-BY 4.0), Fluent Emoji
(Microsoft, MIT).
"""
