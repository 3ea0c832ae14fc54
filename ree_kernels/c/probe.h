/* Does this build, on this processor, compute as the definition says? */
#ifndef REE_PROBE_H
#define REE_PROBE_H

/* NULL if it does, else what is wrong. */
const char *ree_probe(void);

#endif
