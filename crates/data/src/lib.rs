//! Preference records, the layouts people have them in, images and sampling order.
