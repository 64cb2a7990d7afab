"""Keys and signatures that minisign 0.11 made for the tests; nothing else is signed with them."""

from __future__ import annotations

# `minisign -G -W`, and two signatures of "hello\n".
KEY = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAYRL7uD95G3P8mE50EfgjXKRcajuGw978KXoAMR4x4e+joA0IMxEpZ6ml4Ta/Gv2S0zMCKS6+PWPf6JHnO7Er6mW1716NQ6sbAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
LINE = "RWRhEvu4P3kbc6ml4Ta/Gv2S0zMCKS6+PWPf6JHnO7Er6mW1716NQ6sb"
PUBLIC = f"untrusted comment: minisign public key 731B793FB8FB1261\n{LINE}\n"
SIGNED = """untrusted comment: signature from minisign secret key
RURhEvu4P3kbcyGIS4IF+GQIF3kp7tEOkh4Q+EOana9KjKet+5yUrYPZoHp68RBZeTPGzfwr76qGR5MbkKPpao7nXn63P8P6GwE=
trusted comment: tc here
ugY5XRXKHj0mzl7Q/xpG/NxGfNv93FfE9wc/IKMaDUr4aMg0tKZ2eQAJwHn/7xTdtlmOPhjqclZJa3OnTuYiAA==
"""
OLD = """untrusted comment: signature from minisign secret key
RWRhEvu4P3kbc8JXLohPRncJjY+AX0ReyvETCt7pi7g5R6QwTNFFhBn5+Xj/LtWyVbt9GEzvjPlNJW9kPpTMq4k/yJubEZ2oUAk=
trusted comment: timestamp:1795759320	file:m.txt
7uZiptSBrEIAU956zf9EKB5J5JKCUJVL3JoAEKuL4GemzNd8aM4smqK7Bw6MRp7xhxWkK4Kg9orGo8KFobQQCA==
"""
# `minisign -G` with the password "hunter2"; it takes a gigabyte for some seconds.
ENCRYPTED = """untrusted comment: minisign encrypted secret key
RWRTY0IyuzBXLSE3C29MBhmOimIh6oYOjaAKyFc1s5uZd+ZQ4VEAAAACAAAAAAAAAEAAAAAAFMIuHsHjH8jn4+Ouiy6MVTurGZmDmtib7tdK3vKSgVo4XOoxP3xXfWVVs/Bv8841nStwYrT4TbIWV4i3WgZIYRzwSkcX68kDuKHjWzRbhC/ZZ2WfXYH+Y1v2wJ6uR5JX/RIcTXBn1Ew=
"""
OTHER = "RWQehC4H8QKl/5ekOTAwC7YKnUTKWVotzBNhrQY2I+wldYkQyynn4lF2"
